"""What a residual study reads: prompts, variants, tokens, and how two models' readings line up."""
