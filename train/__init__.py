"""Training side of sol_rt: the torch reference model of every action and the policy network."""
