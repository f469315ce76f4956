"""Protocol `kv_communication`: how few bytes of KV cache can one model send another?"""
