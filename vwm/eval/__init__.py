"""How good is a world? Metrics, open-loop rollouts, control by actions, speed, and a report that shows them."""
