#!/bin/sh
# Makes the gallery: `sh reports/compare/make.sh target/release/ebbtide`, from the repository's root.
# A page has its figures within; only for the first are they kept as files too.
set -e
ebbtide=${1:-target/release/ebbtide}
for model in llama-3.1-8b llama-2-7b qwen2.5-32b; do
  for profile in h100-sxm5-80gb rtx-4090-24gb; do
    directory=reports/compare/$model-$profile
    $ebbtide compare --model $model --profile $profile -o $directory > $directory.txt || [ $? = 3 ]
    mv $directory.txt $directory/printed.txt
    rm -f $directory/comparison.json $directory/*.png
    [ $model-$profile = llama-3.1-8b-h100-sxm5-80gb ] || rm -f $directory/*.svg
  done
done
