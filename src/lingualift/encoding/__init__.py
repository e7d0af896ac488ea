"""What turns rows into token ids: prompts and answers, batches, parallel text; below fusion, training, evaluation."""
