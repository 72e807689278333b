"""Training scripts in many libraries' idioms: right ones, wrong ones, and wrong ones beyond `doctor`."""

TORCH = "import copy\nimport torch\nfrom torch import nn, optim\n"
LOOP = """for epoch in range(9):
    for x, y in loader:
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
"""
MADE = TORCH + "model = Net()\noptimizer = optim.SGD(model.parameters(), 0.1)\n"

RIGHT = {
    "paddle's class of a list": """
import paddle
from polyak.paddle import ExponentialMovingAverage
layer = paddle.nn.Linear(16, 2)
optimizer = paddle.optimizer.AdamW(0.01, parameters=layer.parameters())
ema = ExponentialMovingAverage(layer.parameters(), decay=0.999)
for _ in range(20):
    layer(paddle.randn([64, 16])).square().mean().backward()
    optimizer.step()
    optimizer.clear_grad()
    ema.step()
""",
    "timm's task": """
import timm
from timm.task import ClassificationTask
task = ClassificationTask(timm.create_model("resnet10t"))
task.setup_ema(decay=0.9998)
for step, (x, y) in enumerate(loader):
    task(x, y)["loss"].backward()
    optimizer.step()
    task.update_ema(step=step)
""",
    "timm's class in its training script": MADE
    + """
from timm import utils
model_ema = None
if args.model_ema:
    model_ema = utils.ModelEmaV3(model, decay=args.model_ema_decay, device="cpu" if args.cpu else None)
def train_one_epoch(model, loader, optimizer, model_ema=None):
    for step, (x, y) in enumerate(loader):
        model(x).sum().backward()
        optimizer.step()
        if model_ema is not None:
            model_ema.update(model, step=step)
train_one_epoch(model, loader, optimizer, model_ema=model_ema)
""",
    "torchvision's references": MADE
    + """
class ExponentialMovingAverage(optim.swa_utils.AveragedModel):
    pass
model_ema = ExponentialMovingAverage(model_without_ddp, device=device, decay=1.0 - alpha)
for epoch in range(9):
    for i, (x, y) in enumerate(loader):
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        if model_ema and i % 32 == 0:
            model_ema.update_parameters(model)
""",
    "two trackers of diffusers' script": MADE
    + """
from diffusers.training_utils import EMAModel
ema_unet = EMAModel(unet.parameters(), model_cls=UNet, model_config=unet.config) if args.use_ema else None
for x in loader:
    with accelerator.accumulate(unet):
        optimizer.step()
    if accelerator.sync_gradients:
        if args.use_ema:
            ema_unet.step(unet.parameters())
""",
    "a latent diffusion module": """
import pytorch_lightning as pl
from ldm.modules.ema import LitEma
class Diffusion(pl.LightningModule):
    def __init__(self):
        self.model_ema = LitEma(self.model)
    def on_train_batch_end(self, *args):
        self.model_ema(self.model)
""",
    "a loop of one's own": MADE
    + "ema_model = copy.deepcopy(model)\n"
    + LOOP
    + """        optimizer.step()
        with torch.no_grad():
            for e, p in zip(ema_model.parameters(), model.parameters()):
                e.mul_(0.999).add_(p, alpha=1 - 0.999)
""",
    "a loop with numbers": MADE
    + "ema_model = copy.deepcopy(model)\n"
    + LOOP
    + """        optimizer.step()
        for e, p in zip(ema_model.parameters(), model.parameters()):
            e.data.mul_(0.9999).add_(p.data, alpha=1e-4)
""",
    "a function of one's own": MADE
    + """
@torch.no_grad()
def update_ema(ema_model, model, decay=0.9999):
    for name, param in model.named_parameters():
        dict(ema_model.named_parameters())[name].mul_(decay).add_(param.data, alpha=1 - decay)
ema = copy.deepcopy(model).eval()
"""
    + LOOP
    + "        optimizer.step()\n        update_ema(ema, model)\n",
    "a class of one's own under another name": """
class Smoothed:
    def __init__(self, model):
        self.shadow = {k: v.clone() for k, v in model.state_dict().items()}
    def update_from(self, model, beta=0.99):
        for k, v in model.state_dict().items():
            self.shadow[k].lerp_(v, 1 - beta)
"""
    + MADE
    + "smoothed = Smoothed(model)\n"
    + LOOP
    + "        optimizer.step()\n        smoothed.update_from(model)\n",
    "a momentum encoder": MADE
    + """
encoder_k = copy.deepcopy(model)
for x, y in loader:
    model(x).sum().backward()
    optimizer.step()
    for q, k in zip(model.parameters(), encoder_k.parameters()):
        k.data = k.data * 0.999 + q.data * (1 - 0.999)
""",
    "a callback without a name": """
import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging
L.Trainer(callbacks=[EMAWeightAveraging(decay=0.999)]).fit(module)
""",
    "ignite's handler": """
from ignite.handlers import EMAHandler
ema = EMAHandler(model, momentum=0.0002)
ema.attach(trainer, name="ema_momentum", event=Events.ITERATION_COMPLETED)
""",
    "keras' optimizer": "import keras\nadam = keras.optimizers.Adam(use_ema=True, ema_momentum=0.99)\n",
    "attached, the handle kept": MADE
    + """
import polyak
ema = polyak.EMA(model, 0.999)
handle = ema.attach(optimizer)
for x in loader:
    optimizer.step()
handle.remove()
for x in loader:
    optimizer.step()
    ema.update()
""",
    "attached to two that step together": MADE
    + "import polyak\nema = polyak.EMA(model, 0.999)\nema.attach([muon, adamw])\n",
    "made after loading": MADE
    + "import polyak\nmodel.load_state_dict(torch.load('a.pt'))\nema = polyak.EMA(model, 0.999)\n"
    "ema.attach(optimizer)\n",
    "resumed": MADE
    + """
import polyak
ema = polyak.EMA(model, 0.999)
state = torch.load("last.pt")
model.load_state_dict(state["model"])
optimizer.load_state_dict(state["optimizer"])
ema.load_state_dict(state["ema"])
for x in loader:
    optimizer.step()
    ema.update()
    torch.save({"optimizer": optimizer.state_dict(), "ema": ema.state_dict()}, "last.pt")
""",
    "handed on as a function": MADE
    + "import polyak\nema = polyak.EMA(model, 0.999)\nrun(after_step=ema.update)\n",
    "moved when made": MADE
    + "from ema_pytorch import EMA\nema = EMA(model, beta=0.99).to(device)\n"
    + LOOP
    + "        optimizer.step()\n        ema.update()\n",
    "mmengine's small momentum": MADE + "from mmengine.model import ExponentialMovingAverage\n"
    "ema = ExponentialMovingAverage(model, momentum=0.0002)\n"
    + LOOP
    + "        optimizer.step()\n        ema.update_parameters(model)\n",
}

# Each with the check that finds it and a piece of the line it points at.
WRONG = {
    "attached and updated": (
        MADE
        + "import polyak\nema = polyak.EMA(model)\nema.attach(optimizer)\n"
        + LOOP
        + "        optimizer.step()\n        ema.update()\n",
        "counted-twice",
        "ema.update()",
    ),
    "attached twice": (
        MADE
        + "import polyak\nema = polyak.EMA(model)\nema.attach(optimizer)\nema.attach(optimizer)  # again\n",
        "counted-twice",
        "# again",
    ),
    "β of the model": (
        MADE
        + "ema_model = copy.deepcopy(model)\ndecay = 0.999\n"
        + LOOP
        + """        optimizer.step()
        for e, p in zip(ema_model.parameters(), model.parameters()):
            e.data.mul_(1 - decay).add_(p.data, alpha=decay)
""",
        "weights-turned-round",
        "for e, p in zip",
    ),
    "lerp with β": (
        MADE
        + """
def update_ema(ema, model, ema_decay):
    for e, p in zip(ema.parameters(), model.parameters()):
        e.lerp_(p, ema_decay)  # from 1 - decay
ema = copy.deepcopy(model)
"""
        + LOOP
        + "        optimizer.step()\n        update_ema(ema, model, 0.99)\n",
        "weights-turned-round",
        "for e, p in zip",
    ),
    "a decay that is τ": (
        MADE
        + "import polyak\nema = polyak.EMA(model, decay=0.005)\n"
        + LOOP
        + "        optimizer.step()\n        ema.update()\n",
        "weights-turned-round",
        "decay=0.005",
    ),
    "mmengine's momentum as a decay": (
        MADE + "from mmengine.model import ExponentialMovingAverage\n"
        "ema = ExponentialMovingAverage(model, momentum=0.999)\n"
        + LOOP
        + "        optimizer.step()\n        ema.update_parameters(model)\n",
        "weights-turned-round",
        "momentum=0.999",
    ),
    "a sum for nobody": (
        MADE
        + "ema_model = copy.deepcopy(model)\n"
        + LOOP
        + """        optimizer.step()
        for e, p in zip(ema_model.parameters(), model.parameters()):
            e = 0.99 * e + (1 - 0.99) * p
""",
        "sum-thrown-away",
        "for e, p in zip",
    ),
    "the average is trained": (
        MADE.replace("model.parameters()", "ema_model.parameters()").replace(
            "optimizer =", "ema_model = copy.deepcopy(model)\noptimizer ="
        )
        + LOOP
        + """        optimizer.step()
        for e, p in zip(ema_model.parameters(), model.parameters()):
            e.data.lerp_(p.data, 1 - 0.99)
""",
        "trained-itself",
        "optim.SGD",
    ),
    "made before the weights are loaded": (
        MADE
        + "import polyak\nema = polyak.EMA(model, 0.9999)\nmodel.load_state_dict(torch.load('a.pt'))\n"
        + LOOP
        + "        optimizer.step()\n        ema.update()\n",
        "made-before-loading",
        "polyak.EMA(",
    ),
    "updated inside the block": (
        MADE
        + "import polyak\nema = polyak.EMA(model)\n"
        + LOOP
        + "        optimizer.step()\n        with ema.average_parameters():\n            ema.update()\n",
        "updated-while-applied",
        "ema.update()",
    ),
    "a loop of one's own before the step": (
        MADE
        + "ema_model = copy.deepcopy(model)\n"
        + LOOP
        + """        for e, p in zip(ema_model.parameters(), model.parameters()):
            e.data.mul_(0.99).add_(p.data, alpha=1 - 0.99)
        optimizer.step()
""",
        "update-before-step",
        "for e, p in zip",
    ),
    "a function of one's own in every micro-batch": (
        MADE
        + """
def ema_update(model, ema, decay):
    for p, e in zip(model.parameters(), ema.parameters()):
        e.copy_(e * decay + p * (1 - decay))
ema = copy.deepcopy(model)
for i, x in enumerate(loader):
    model(x).sum().backward()
    if i % 4 == 3:
        optimizer.step()
    ema_update(model, ema, 0.99)
""",
        "update-per-micro-batch",
        "ema_update(model, ema",
    ),
    "a copy that nothing updates": (
        MADE + "ema_model = copy.deepcopy(model)\n" + LOOP + "        optimizer.step()\nema_model.eval()\n",
        "never-updated",
        "copy.deepcopy",
    ),
    "paddle's class never stepped": (
        "import paddle\nfrom polyak.paddle import ExponentialMovingAverage\n"
        "ema = ExponentialMovingAverage(layer.parameters())\nfor x in loader:\n"
        "    optimizer.step()\nema.apply_to()\n",
        "never-updated",
        "ExponentialMovingAverage(layer",
    ),
    "a class of one's own before the step": (
        """
class Smoothed:
    def __init__(self, model):
        self.shadow = {k: v.clone() for k, v in model.state_dict().items()}
    def update(self, model):
        for k, v in model.state_dict().items():
            self.shadow[k] = 0.99 * self.shadow[k] + (1 - 0.99) * v
"""
        + MADE
        + "smoothed = Smoothed(model)\n"
        + LOOP
        + "        smoothed.update(model)\n        optimizer.step()\n",
        "update-before-step",
        "smoothed.update(model)",
    ),
    "paddle's scaler": (
        """
import paddle
from polyak.paddle import EMA
scaler = paddle.amp.GradScaler()
ema = EMA(layer, 0.999)
for x in loader:
    scaler.scale(layer(x).mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    ema.update()
""",
        "update-on-skipped-step",
        "    ema.update()",
    ),
}

# What reading one script cannot tell; each is here so that the day it is found is noticed.
BEYOND = {
    "attached to another model's optimizer": MADE
    + "import polyak\nema = polyak.EMA(critic)\nema.attach(optimizer)\nfor x in loader:\n"
    "    optimizer.step()\n",
    "BatchNorm's statistics of the raw weights": MADE
    + "from torch_ema import ExponentialMovingAverage\nmodel = nn.Sequential(nn.BatchNorm1d(3))\n"
    "ema = ExponentialMovingAverage(model.parameters(), 0.99)\n"
    + LOOP
    + "        optimizer.step()\n        ema.update()\n",
    "the raw model is the one that is validated": MADE
    + "import polyak\nema = polyak.EMA(model)\nema.attach(optimizer)\nfor x in loader:\n"
    "    optimizer.step()\nvalidate(model)\n",
    "a decay too long for the run": MADE
    + "import polyak\nema = polyak.EMA(model, 0.99999)\nfor x in range(100):\n    optimizer.step()\n"
    "    ema.update()\n",
}
