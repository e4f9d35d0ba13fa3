"""Episodes in, clips out: shards, their index, the clip order, recording and ingest."""
