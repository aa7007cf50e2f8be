"""Methods, one file each: what the attack raises and what the optimiser lowers."""
