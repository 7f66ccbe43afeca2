"""One self-contained HTML page about one or more artifacts: `lutllm report`.

facts     what an artifact's files say: sizes, errors, measurements
verdicts  is the error of a layer good, to be watched or bad
usage     how evenly the weight centroids are used
charts    SVG and colours
page      the template filled in
"""
