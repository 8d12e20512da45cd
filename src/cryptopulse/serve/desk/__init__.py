"""What one viewer asks for: the evidence of an episode, episodes of the past, prices, trials of rules."""
