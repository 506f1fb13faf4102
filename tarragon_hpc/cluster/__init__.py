"""Where the processes run, and how they find the head."""
