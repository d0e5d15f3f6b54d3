"""Training side of sol_rt: the torch twin of every action and the policy network."""
