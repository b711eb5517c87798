import Foundation
import PlanishModel

// swift run planish-demo BUNDLE TEXT: an embedding's first numbers, or a continuation, by what the bundle's task is.

let arguments = CommandLine.arguments
guard arguments.count == 3 else {
    FileHandle.standardError.write(Data("usage: planish-demo BUNDLE TEXT\n".utf8))
    exit(2)
}

let bundle = try BundleFolder(URL(filePath: arguments[1]))
if bundle.manifest.task == "text-generation" {
    let loop = try await TokenLoop(bundle)
    print(arguments[2], terminator: "")
    try await loop.continueText(arguments[2]) { text in
        print(text, terminator: "")
        fflush(stdout)
        return true
    }
    print()
} else {
    let embedder = try await TextEmbedder(bundle)
    let vector = try await embedder.embed(arguments[2])
    print("\(vector.count) numbers:", vector.prefix(8).map { String(format: "%.4f", $0) }.joined(separator: " "), "...")
}
