"""Pictures and pages from run folders; imports no torch."""
