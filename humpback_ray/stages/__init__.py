"""A stage directory and its shard ledger: how work is cut, tried, committed once and watched."""
