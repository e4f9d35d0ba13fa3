"""The web player: one small server and one page, over any simulator."""
