"""Looking: a page that shows what runs were averages of, and curves of what evaluations gave, as pictures."""

from polyak.report.write import report as report
