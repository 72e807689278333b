"""The words of the results' page in Chinese: by the English that the reports hold."""

from __future__ import annotations

CHINESE: dict[str, str] = {
    "holds": "成立",
    "holds, smaller": "成立，但幅度更小",
    "no difference seen": "未见差别",
    "does not hold": "不成立",
    "not tried": "尚未测量",
    # articles
    "PaddleOCR, SVTR: line accuracy +1.2 points": "PaddleOCR，SVTR：整行准确率 +1.2 个百分点",
    "PaddleNLP, UIE: F1 +0.8 to +1.3 points": "PaddleNLP，UIE：F1 +0.8 至 +1.3 个百分点",
    "YOLO: mAP50-95 +0.5 to +1.2 points": "YOLO：mAP50-95 +0.5 至 +1.2 个百分点",
    "ImageNet, self-distillation: accuracy +0.8 points": "ImageNet，自蒸馏：准确率 +0.8 个百分点",
    "CIFAR-100: accuracy +1.2 points": "CIFAR-100：准确率 +1.2 个百分点",
    "PGD: attacks that succeed 42 → 34 %": "PGD：攻击成功率 42 → 34 %",
    "BERT: the same loss in 15 % fewer steps": "BERT：达到相同损失少用 15 % 的步数",
    # units and sides
    "points": "百分点",
    "nats": "奈特",
    "steps": "步",
    "epochs": "轮",
    "kB": "kB",
    "raw weights": "原始权重",
    "average": "平均权重",
    # data
    "Fashion-MNIST": "Fashion-MNIST",
    "MIT": "MIT",
    # tutorial
    "A small network trained at a constant learning rate ends more accurate when its weights are averaged.": (
        "学习率恒定时，小网络的权重经过平均，最终准确率更高。"
    ),
    "a tutorial on CIFAR-10: accuracy +2 points": "一篇 CIFAR-10 教程：准确率 +2 个百分点",
    "accuracy at the end, constant rate": "最终准确率，恒定学习率",
    "test loss at the end, constant rate": "最终测试损失，恒定学习率",
    "when the raw weights' best accuracy is reached, constant rate": (
        "达到原始权重最高准确率的时刻，恒定学习率"
    ),
    "jump of the accuracy between epochs, constant rate": "准确率在相邻两轮之间的跳动，恒定学习率",
    "wobble of the accuracy, constant rate": "准确率的抖动，恒定学习率",
    "accuracy at the end, cosine to a tenth": "最终准确率，余弦降到十分之一",
    "test loss at the end, cosine to a tenth": "最终测试损失，余弦降到十分之一",
    "when the raw weights' best accuracy is reached, cosine to a tenth": (
        "达到原始权重最高准确率的时刻，余弦降到十分之一"
    ),
    "wobble of the accuracy, cosine to a tenth": "准确率的抖动，余弦降到十分之一",
    "accuracy at the end, an average instead of a schedule": "最终准确率：用平均代替调度",
    "raw weights, cosine to a tenth": "原始权重，余弦降到十分之一",
    "average, constant rate": "平均权重，恒定学习率",
    # halflife
    "The default half-life, 0.69·t^⅔ steps, has the loss of the best fixed one to 0.003, without a search.": (
        "默认的半衰期 0.69·t^⅔ 步无需搜索，其损失与最佳的固定半衰期相差不到 0.003。"
    ),
    "no figure; articles name 0.999 or 0.9999 for runs of every length": (
        "没有数值；各文章对任何长度的训练都推荐 0.999 或 0.9999"
    ),
    "best of all half-lives, chosen on these images": "所有半衰期中最好的，就在这些图像上选出",
    "default, Warmup(0.9999)": "默认值 Warmup(0.9999)",
    "best half-life": "最佳半衰期",
    "best half-life as the run goes on": "最佳半衰期随训练的变化",
    "after a quarter of the run": "训练四分之一之后",
    "at its end": "训练结束时",
    "gain of the best half-life after as many steps": "步数相同时最佳半衰期的收益",
    "cosine to zero": "余弦降到零",
    "constant rate": "恒定学习率",
    "best half-life after a quarter of the run": "训练四分之一之后的最佳半衰期",
    "steps of 64 images": "步，每步 64 张图像",
    "batch 64": "批大小 64",
    "batch 16": "批大小 16",
    "batch 256": "批大小 256",
    "test loss at batch 256 of the half-life that was best at 64": (
        "批大小 64 时最佳的半衰期用于批大小 256 的测试损失"
    ),
    "β kept": "β 不变",
    "β^4": "β^4",
    "test loss of the shortest average that the snapshots hold": "快照所能合成的最短平均权重的测试损失",
    "computed while training": "训练中计算",
    "made afterwards": "训练后合成",
    "half-life": "半衰期",
    "best here": "此处最佳",
    "suggested by theory for curvatures i^-1.5": "理论对曲率 i^-1.5 的建议",
    # precision
    "An average stored in bfloat16, rounded at random, has the accuracy of one in float32, to 0.05 points.": (
        "以 bfloat16 存储并随机舍入的平均权重，准确率与 float32 的相差不到 0.05 个百分点。"
    ),
    "no figure; 16-bit averages are often said to stop moving": (
        "没有数值；常有人说 16 位的平均权重会停住不动"
    ),
    "accuracy": "准确率",
    "test loss": "测试损失",
    "average's memory": "平均权重占用的内存",
    "accuracy, to see how much there was to lose": "准确率，以便看出可能损失多少",
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "split": "split",
    # ocr
    "At a constant learning rate the average of the weights reads more lines of text right.": (
        "学习率恒定时，平均权重能读对更多的文本行。"
    ),
    "an article on PaddleOCR's SVTR: line accuracy +1.2 points": (
        "一篇关于 PaddleOCR 的 SVTR 的文章：整行准确率 +1.2 个百分点"
    ),
    "synthetic lines of Chinese text": "合成的中文文本行",
    "the lines are made here; fonts: OFL, GPL, Arphic": "文本行由本项目生成；字体：OFL、GPL、Arphic",
    "Warmup(0.999)": "Warmup(0.999)",
    "lines read right at the end, constant rate": "最终读对的行，恒定学习率",
    "when the raw weights' best is reached, constant rate": "达到原始权重最高水平的时刻，恒定学习率",
    "jump between evaluations, constant rate": "相邻评估之间的跳动，恒定学习率",
    "wobble between evaluations, constant rate": "评估之间的抖动，恒定学习率",
    "lines read right at the end, cosine to zero": "最终读对的行，余弦降到零",
    "when the raw weights' best is reached, cosine to zero": "达到原始权重最高水平的时刻，余弦降到零",
    "jump between evaluations, cosine to zero": "相邻评估之间的跳动，余弦降到零",
    "wobble between evaluations, cosine to zero": "评估之间的抖动，余弦降到零",
}
