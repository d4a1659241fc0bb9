"""XenStore, the small tree of names and values by which para-virtual guests and the toolstack agree on devices."""
