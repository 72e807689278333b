import timm
import torch
from timm.task import ClassificationTask, load_task_ema_checkpoint
from timm.utils import CheckpointSaver

model = timm.create_model("resnet10t", num_classes=10)
task = ClassificationTask(model, device=torch.device("cpu"), verbose=False)
optimizer = torch.optim.SGD(task.parameters(), lr=0.01, momentum=0.9)
task.setup_ema(decay=0.99, use_warmup=True)
saver = CheckpointSaver(model, optimizer, task=task)

num_updates = 0
for epoch in range(2):
    for _ in range(3):
        loss = task(torch.randn(4, 3, 32, 32), torch.randint(10, (4,)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        num_updates += 1
        task.update_ema(step=num_updates)
    saver.save_checkpoint(epoch)

load_task_ema_checkpoint(task, "last.pth.tar")  # as --resume does
