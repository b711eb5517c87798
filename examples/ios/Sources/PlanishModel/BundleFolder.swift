import CoreML
import Foundation

/// What manifest.json of a bundle says, as far as an app needs it (docs/bundle-format.md).
public struct Manifest: Decodable, Sendable {
    public let version: Int
    public let name: String
    public let task: String
    public let tokenizer: String?
    public let targets: [String: TargetEntry]
}

public struct TargetEntry: Decodable, Sendable {
    public let artifact: ArtifactEntry?
}

public struct ArtifactEntry: Decodable, Sendable {
    public let folder: String
    public let entry: String
    public let options: Options
}

/// Facts of a Core ML package. Those of caches are there for language models alone.
public struct Options: Decodable, Sendable {
    public let inputs: [String]
    public let outputs: [String]
    /// Function of the package -> tokens that one call of it takes.
    public let functions: [String: Int]?
    /// Tokens that the caches inside hold.
    public let context: Int?
    /// "last": a call returns logits of its last token; "all": of each.
    public let logits: String?
    /// Causal masks that a call must give (`--ane`): name -> window and chunk, 0 for none.
    public let masks: [String: [Int]]?
}

public enum ModelError: LocalizedError {
    case noPackage(String)
    case tooLong(tokens: Int, most: Int)
    case noOutput(String)

    public var errorDescription: String? {
        switch self {
        case .noPackage(let why): return "no Core ML package: \(why)"
        case .tooLong(let tokens, let most): return "\(tokens) tokens, but the model takes \(most)"
        case .noOutput(let name): return "the model returned no \(name)"
        }
    }
}

/// A bundle that `planish compile` wrote, or the parts of it that an app ships: manifest.json, targets/coreml, tokenizer.
public struct BundleFolder: Sendable {
    public let url: URL
    public let manifest: Manifest

    public init(_ url: URL) throws {
        self.url = url
        let data = try Data(contentsOf: url.appending(path: "manifest.json"))
        manifest = try JSONDecoder().decode(Manifest.self, from: data)
        guard manifest.version == 1 else {
            throw ModelError.noPackage("the manifest has version \(manifest.version), this code reads 1")
        }
    }

    public var tokenizer: URL? {
        manifest.tokenizer.map { url.appending(path: $0) }
    }

    public func artifact() throws -> ArtifactEntry {
        guard let found = manifest.targets["coreml"]?.artifact else {
            throw ModelError.noPackage("the bundle has no target coreml")
        }
        return found
    }

    /// The package, compiled for this device: the .mlmodelc beside it when there is one, else compiled now.
    ///
    /// Compiling takes long and its result lies in a temporary folder: an app keeps it, or compiles when it is built
    /// (`xcrun coremlcompiler compile model.mlpackage .`).
    public func compiled() async throws -> URL {
        let found = try artifact()
        let package = url.appending(path: found.folder).appending(path: found.entry)
        let beside = package.deletingPathExtension().appendingPathExtension("mlmodelc")
        if FileManager.default.fileExists(atPath: beside.path(percentEncoded: false)) {
            return beside
        }
        return try await MLModel.compileModel(at: package)
    }
}

/// Integers as Core ML takes them: int32, whatever the model's own type was.
func feature(_ numbers: [Int], shape: [Int]) -> MLFeatureValue {
    MLFeatureValue(shapedArray: MLShapedArray<Int32>(scalars: numbers.map { Int32($0) }, shape: shape))
}
