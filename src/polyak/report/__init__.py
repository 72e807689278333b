"""Looking: drawings of profiles and of what evaluations gave, for the terminal and as pictures."""
