import torch
from sklearn.datasets import load_digits
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import polyak
from polyak.trainers.transformers import WeightAveraging

images, labels = map(torch.tensor, load_digits(return_X_y=True))
rows = [{"input_ids": i, "labels": y} for i, y in zip(images.long(), labels, strict=True)]  # a pixel, a word
config = BertConfig(
    vocab_size=17, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    num_labels=10,
)  # fmt: skip
arguments = TrainingArguments(
    "runs", max_steps=24, eval_strategy="steps", eval_steps=8, save_steps=8, learning_rate=1e-2,
    use_cpu=True, report_to="none",
)  # fmt: skip
model = BertForSequenceClassification(config)
trainer = Trainer(model, arguments, train_dataset=rows[:1500], eval_dataset=rows[1500:])
average = WeightAveraging(polyak.Warmup(0.999)).attach(trainer)
trainer.train()  # or trainer.train(resume_from_checkpoint=True)

averaged = BertForSequenceClassification.from_pretrained("runs/checkpoint-24/average")
average.save_pretrained("average")
