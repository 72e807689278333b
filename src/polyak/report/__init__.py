"""Looking: curves of what evaluations gave, as pictures."""
