"""Protocol `rank_mechanism`: do audit-guided LoRA ranks help, or would any ranks do?"""
