import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import polyak
from polyak.trainers.transformers import WeightAverage

config = BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)
rows = [{"input_ids": torch.randint(20, (12,)), "labels": i % 2} for i in range(32)]
arguments = TrainingArguments(
    "runs", max_steps=8, eval_strategy="steps", eval_steps=4, save_steps=4, use_cpu=True, report_to="none"
)
trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=rows, eval_dataset=rows[:8])
average = WeightAverage(trainer, polyak.Warmup(0.999))
trainer.train()  # or trainer.train(resume_from_checkpoint=True)

model = BertForSequenceClassification.from_pretrained("runs/checkpoint-8/average")
average.save_pretrained("average")
