"""Protocol `low_rank`: what does a compressed model lose, and does what compresses it do anything?"""
