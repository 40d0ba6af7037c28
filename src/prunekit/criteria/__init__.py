"""One criterion a file: from what a walk shows to scores; low = safe to remove."""
