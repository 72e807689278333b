"""How an update is carried out. An engine is prepared once from the plan's pairs and then only run."""
