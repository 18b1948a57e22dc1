"""Tools that look at a run from outside its stages: status, verify, gc, plan, limits, pilot, fetch."""
