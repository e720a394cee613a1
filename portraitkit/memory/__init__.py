"""The memory planner: what a run holds and needs at its peak, on the meta device."""
