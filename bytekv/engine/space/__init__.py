"""Space: which segments to rewrite, when, and how."""
