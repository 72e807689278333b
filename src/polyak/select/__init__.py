"""Selection: the best checkpoint of a run, a gate for releases, the search for a half-life."""

from polyak.select.best_checkpoint import Decision as Decision
