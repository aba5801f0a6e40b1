#!/bin/sh
# Makes the gallery: `sh reports/compare/make.sh target/release/ebbtide`, from the repository's root.
# Of all but the first comparison only tables and the figures that decide are kept.
set -e
ebbtide=${1:-target/release/ebbtide}
for profile in h100-sxm5-80gb rtx-4090-24gb; do
  for model in llama-3.1-8b llama-2-7b qwen2.5-32b; do
    directory=reports/compare/$model-$profile
    rm -f $directory/index.html
    # Exit code 3: nothing fits at any length, which is an answer too.
    [ $model-$profile = llama-3.1-8b-h100-sxm5-80gb ] && limit=10s || limit=2s
    $ebbtide compare --model $model --profile $profile --time-limit $limit -o $directory \
      > $directory.txt || [ $? = 3 ]
    mv $directory.txt $directory/printed.txt
    rm -f $directory/comparison.json $directory/*.png
    [ $model-$profile = llama-3.1-8b-h100-sxm5-80gb ] && continue
    rm -f $directory/index.html $directory/timeline.svg $directory/decisions-*.svg \
      $directory/memory-*.svg $directory/budget.svg
    # The list of figures names what is on the page.
    sed -i '/^## Figures/,$d' $directory/report.md
    printf '## Figures\n\n' >> $directory/report.md
    for figure in $directory/*.svg; do
      name=$(basename $figure)
      printf '![%s](%s)\n\n' "${name%.svg}" "$name" >> $directory/report.md
    done
  done
done
