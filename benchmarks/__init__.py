"""One file per question; each prints its table from scratch and writes it, dated, into results/."""
