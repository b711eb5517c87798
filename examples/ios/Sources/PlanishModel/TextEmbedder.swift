import CoreML
import Foundation
import Tokenizers

/// Text -> embedding, with an encoder (`planish compile MODEL -t coreml`, task feature-extraction).
public actor TextEmbedder {
    private let model: MLModel
    private let tokenizer: any Tokenizer
    private let inputs: [String]
    private let output: String
    private let pooling: String

    public init(_ bundle: BundleFolder, units: MLComputeUnits = .all) async throws {
        let artifact = try bundle.artifact()
        guard let folder = bundle.tokenizer else {
            throw ModelError.noPackage("the bundle has no tokenizer")
        }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        model = try MLModel(contentsOf: try await bundle.compiled(), configuration: configuration)
        tokenizer = try await AutoTokenizer.from(modelFolder: folder)
        inputs = artifact.options.inputs
        output = artifact.options.outputs[0]
        pooling = Self.pooling(folder)
    }

    /// A vector of length 1.
    public func embed(_ text: String) throws -> [Float] {
        let tokens = tokenizer.encode(text: text)
        let length = try padded(tokens.count)
        let missing = length - tokens.count
        let zeros = [Int](repeating: 0, count: missing)
        var given: [String: MLFeatureValue] = [:]
        for name in inputs {
            switch name {
            case "input_ids": given[name] = feature(tokens + zeros, shape: [1, length])
            case "attention_mask":
                given[name] = feature([Int](repeating: 1, count: tokens.count) + zeros, shape: [1, length])
            default: given[name] = feature([Int](repeating: 0, count: length), shape: [1, length])
            }
        }
        let made = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: given))
        guard let states = made.featureValue(for: output)?.multiArrayValue else {
            throw ModelError.noOutput(output)
        }
        let values = MLShapedArray<Float>(states)  // [1, length, width], or [1, width]
        let width = values.shape[values.shape.count - 1]
        let scalars = values.scalars
        if values.shape.count == 2 {
            return Self.normalised(scalars)
        }
        let rows = pooling == "cls" ? 1 : tokens.count
        var sum = [Float](repeating: 0, count: width)
        for row in 0..<rows {
            for column in 0..<width {
                sum[column] += scalars[row * width + column]
            }
        }
        return Self.normalised(sum)
    }

    /// The smallest length that the package takes and the text fits in.
    private func padded(_ count: Int) throws -> Int {
        guard let constraint = model.modelDescription.inputDescriptionsByName["input_ids"]?.multiArrayConstraint else {
            throw ModelError.noPackage("it has no input input_ids")
        }
        var lengths: [Int]
        switch constraint.shapeConstraint.type {
        case .enumerated:
            lengths = constraint.shapeConstraint.enumeratedShapes.map { $0[1].intValue }
        case .range:
            let range = constraint.shapeConstraint.sizeRangeForDimension[1].rangeValue
            let most = range.location + range.length - 1
            lengths = count <= most ? [max(count, range.location)] : [most]
        default:
            lengths = [constraint.shape[1].intValue]
        }
        lengths.sort()
        guard let found = lengths.first(where: { $0 >= count }) else {
            throw ModelError.tooLong(tokens: count, most: lengths.last ?? 0)
        }
        return found
    }

    /// How sentence-transformers made one vector of many; models that do not say so take the mean.
    private static func pooling(_ tokenizer: URL) -> String {
        let file = tokenizer.appending(path: "1_Pooling/config.json")
        guard let data = try? Data(contentsOf: file),
            let told = try? JSONSerialization.jsonObject(with: data) as? [String: Any]
        else {
            return "mean"
        }
        return told["pooling_mode_cls_token"] as? Bool == true ? "cls" : "mean"
    }

    private static func normalised(_ values: [Float]) -> [Float] {
        let length = values.reduce(0) { $0 + $1 * $1 }.squareRoot()
        return length > 0 ? values.map { $0 / length } : values
    }
}
