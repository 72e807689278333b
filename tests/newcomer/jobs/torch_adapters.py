"""A LoRA adapter of PEFT in the Hugging Face Trainer: one callback, files in the adapter's format."""

import os
import subprocess

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.datasets import load_digits
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import polyak
from polyak.trainers.transformers import WeightAveraging

images, labels = map(torch.tensor, load_digits(return_X_y=True))
rows = [{"input_ids": i, "labels": y} for i, y in zip(images.long(), labels, strict=True)]
config = BertConfig(
    vocab_size=17,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    num_labels=10,
)
torch.manual_seed(0)
BertForSequenceClassification(config).save_pretrained("base")


def adapted():
    base = BertForSequenceClassification.from_pretrained("base")
    lora = LoraConfig(
        r=4, target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    return get_peft_model(base, lora)


arguments = TrainingArguments(
    "runs", max_steps=60, eval_strategy="steps", eval_steps=20, save_steps=20, learning_rate=1e-2,
    lr_scheduler_type="constant", metric_for_best_model="loss", use_cpu=True, report_to="none",
)  # fmt: skip
trainer = Trainer(adapted(), arguments, train_dataset=rows[:1500], eval_dataset=rows[1500:])
average = WeightAveraging(polyak.HalfLife(share=0.05), evaluate="both").attach(trainer)
trainer.train()
last = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
print(f"average {last['eval_loss']:.4f}, raw {last['eval_raw/loss']:.4f}")

assert all("lora" in name or "modules_to_save" in name for name in average.ema.tracks["average"].tensors)
for folder in ("runs/checkpoint-60/average", "runs/best/average", "runs/best/raw"):
    assert os.path.exists(f"{folder}/adapter_model.safetensors"), folder
assert last["eval_loss"] < last["eval_raw/loss"], "at a constant rate"
base = BertForSequenceClassification.from_pretrained("base")
opened = PeftModel.from_pretrained(base, "runs/checkpoint-60/average").eval()
inputs = torch.stack([row["input_ids"] for row in rows[1500:]])
with torch.no_grad():
    loss = torch.nn.functional.cross_entropy(opened(input_ids=inputs).logits, labels[1500:])
assert abs(float(loss) - last["eval_loss"]) < 1e-5, "the folder holds what was evaluated"
merged = opened.merge_and_unload()
merged.save_pretrained("merged")
subprocess.run("polyak inspect runs/checkpoint-60 runs/checkpoint-60/average", shell=True, check=True)
