"""One file a strategy: what it inserts into the towers and what it trains."""
