# timm's train script with three lines changed; everything else in it stays.
import timm
import torch

from polyak.dropin.timm import ModelEmaV3  # 1: instead of utils.ModelEmaV3

model = timm.create_model("resnet10t", num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
model_ema = ModelEmaV3(model, decay=0.99, use_warmup=True)  # 2: the same arguments

for num_updates in range(1, 4):
    loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model_ema.update(model, step=num_updates)

torch.save(
    {"state_dict": model.state_dict(), "state_dict_ema": model_ema.module.state_dict()}, "last.pth.tar"
)
# 3: `polyak convert last.pth.tar average.safetensors` makes a file that says what it is
