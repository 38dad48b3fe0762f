"""Networks, without their training: language models, adapters, score and value models, sampling."""
