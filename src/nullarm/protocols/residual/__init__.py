"""Protocol `residual`: where in depth and position does fine-tuning change the residual stream?"""
