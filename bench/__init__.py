"""The benchmark a user can run: the real service against the machine's own limit and against its peers."""
