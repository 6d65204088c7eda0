"""Start the three-level UNets from four-level ones trained before: the deepest level and the middle go, the rest stays. usage: cut.py BIG.pt I|II"""
from data import *
import unet
big = torch.load(sys.argv[1])
b = dict(big["model"]); un = unet.make(sys.argv[2]); names = [n for n, _ in un.named_parameters()]
for k, e in zip(list(b), big["ema"]): assert e.shape == b[k].shape; b[k] = e
kept = 0
with torch.no_grad():
    for n, p in un.named_parameters():
        m = n
        if n.startswith("up_blocks."): m = f"up_blocks.{int(n.split('.')[1]) + 1}." + n.split(".", 2)[2]
        if m in b and b[m].shape == p.shape: p.copy_(b[m]); kept += p.numel()
        elif m in b and n.startswith("up_blocks.0.resnets.0.") and b[m].ndim == 4 and p.shape[0] == b[m].shape[0]: p[:, -p.shape[0]:].copy_(b[m][:, -p.shape[0]:])
print("kept", kept, "of", sum(p.numel() for p in un.parameters()))
torch.save(dict(model=un.state_dict(), ema=[p.data.clone() for p in un.parameters()], seen=big["seen"]), f"{WORK}/unet{sys.argv[2]}.pt")
