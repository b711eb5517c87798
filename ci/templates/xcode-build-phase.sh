#!/bin/bash
# A "Run Script" build phase, before "Copy Bundle Resources":   bash "$SRCROOT/xcode-build-phase.sh" minilm-int8 ...
# Makes the bundles that are named, compiles their Core ML packages, and puts them with their tokenizers into the app:
# NAME/model.mlmodelc, NAME/tokenizer/. Turn off "Based on dependency analysis" (planish knows what is up to date) and
# "User Script Sandboxing" (it writes beside planish.toml).
#   PLANISH        the command, where Xcode's PATH lacks it       (default: planish)
#   PLANISH_FILE   (default: $SRCROOT/planish.toml)
#   PLANISH_OUTPUT folder of the bundles                          (default: $SRCROOT/dist)
set -euo pipefail
planish=${PLANISH:-planish}
file=${PLANISH_FILE:-$SRCROOT/planish.toml}
output=${PLANISH_OUTPUT:-$SRCROOT/dist}
resources=$TARGET_BUILD_DIR/$UNLOCALIZED_RESOURCES_FOLDER_PATH
if [ $# -eq 0 ]; then
  echo "error: name at least one bundle: bash xcode-build-phase.sh NAME ..."
  exit 2
fi
only=()
for name in "$@"; do only+=(--only "$name"); done
code=0
"$planish" build "$file" "${only[@]}" || code=$?
if [ "$code" -ne 0 ]; then
  # Xcode shows lines that begin with "error:".
  [ "$code" -eq 3 ] && echo "error: a model failed a gate; see report.json of the bundle and the log above"
  [ "$code" -ne 3 ] && echo "error: planish build ended with $code"
  exit "$code"
fi
for name in "$@"; do
  bundle=$output/$name.planish
  if [ ! -d "$bundle/targets/coreml" ]; then
    echo "error: $bundle has no artifact for coreml"
    exit 1
  fi
  rm -rf "${resources:?}/$name"
  mkdir -p "$resources/$name"
  for package in "$bundle"/targets/coreml/*.mlpackage; do
    xcrun coremlcompiler compile "$package" "$resources/$name" --deployment-target "${IPHONEOS_DEPLOYMENT_TARGET:-18.0}" --platform ios
  done
  if [ -d "$bundle/tokenizer" ]; then cp -R "$bundle/tokenizer" "$resources/$name/tokenizer"; fi
done
