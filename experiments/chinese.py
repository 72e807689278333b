"""The words of the results' page in Chinese: by the English that the reports hold."""

from __future__ import annotations

CHINESE: dict[str, str] = {
    "holds": "成立",
    "holds, smaller": "成立，但幅度更小",
    "no difference seen": "未见差别",
    "does not hold": "不成立",
}
