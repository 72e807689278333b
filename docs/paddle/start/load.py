from paddle import nn

import polyak

layer = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1D(64), nn.ReLU(), nn.Linear(64, 2))
missing, unexpected = layer.set_state_dict(polyak.load("average.safetensors").tensors)
