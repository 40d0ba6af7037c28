"""prunekit makes causal language models smaller and tells honestly what that costs."""
