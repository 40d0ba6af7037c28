"""Pictures and pages of what was measured; reads files only and imports no stage."""
