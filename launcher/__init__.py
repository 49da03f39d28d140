"""Resolves the model, starts the shards' agent and the router, and watches both."""
