import CoreML
import Foundation
import Tokenizers

/// Text -> text, with a language model whose caches are states of the package
/// (`planish compile MODEL -t coreml -r int4`, task text-generation).
///
/// The package has a function for each number of tokens that one call takes: "decode" for one, "prefill" for a part of
/// the prompt. They share weights in the file and the state in memory.
public actor TokenLoop {
    private struct Function {
        let size: Int
        let model: MLModel
    }

    private let functions: [Function]  // smallest first; the first takes one token
    private let tokenizer: any Tokenizer
    private let context: Int
    private let everyLogit: Bool
    private let masks: [String: [Int]]

    public init(_ bundle: BundleFolder, units: MLComputeUnits = .all) async throws {
        let options = try bundle.artifact().options
        guard let sizes = options.functions, let context = options.context, let folder = bundle.tokenizer else {
            throw ModelError.noPackage("it is not a language model with its caches inside, or has no tokenizer")
        }
        let compiled = try await bundle.compiled()
        var loaded: [Function] = []
        for (name, size) in sizes {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units
            configuration.functionName = name
            loaded.append(Function(size: size, model: try MLModel(contentsOf: compiled, configuration: configuration)))
        }
        functions = loaded.sorted { $0.size < $1.size }
        tokenizer = try await AutoTokenizer.from(modelFolder: folder)
        self.context = context
        everyLogit = options.logits == "all"
        masks = options.masks ?? [:]
    }

    /// The greedy continuation, one piece of text at a time.
    ///
    /// - Parameter piece: is called with the text that each token adds; returns false to stop.
    public func continueText(_ prompt: String, most: Int = 128, piece: (String) -> Bool) throws {
        var tokens = tokenizer.encode(text: prompt)
        guard !tokens.isEmpty, tokens.count < context else {
            throw ModelError.tooLong(tokens: tokens.count, most: context - 1)
        }
        let state = functions[0].model.makeState()  // zeros: a new text
        var logits = try read(tokens[...], at: 0, state: state)
        var shown = tokenizer.decode(tokens: tokens)
        for _ in 0..<most {
            let next = Self.largest(logits)
            if next == tokenizer.eosTokenId || tokens.count + 1 >= context {
                return
            }
            tokens.append(next)
            let text = tokenizer.decode(tokens: tokens)
            // a token may be a part of a character: what is not whole yet is shown with the next one
            if !text.hasSuffix("\u{FFFD}") {
                if !piece(String(text.dropFirst(shown.count))) {
                    return
                }
                shown = text
            }
            logits = try read([next], at: tokens.count - 1, state: state)
        }
    }

    /// Logits after the last of these tokens, which stand at the places from `first` on.
    private func read(_ tokens: ArraySlice<Int>, at first: Int, state: MLState) throws -> [Float] {
        let given = Array(tokens)
        var at = 0
        var logits: [Float] = []
        while at < given.count {
            let left = given.count - at
            let room = context - first - at
            let function = next(left: left, room: room)
            let real = min(function.size, left)
            // what is put behind the text goes into later places, which nothing sees until they are written again
            let padding = [Int](repeating: given[at + real - 1], count: function.size - real)
            let places = (0..<function.size).map { first + at + $0 }
            var features: [String: MLFeatureValue] = [
                "input_ids": feature(Array(given[at..<at + real]) + padding, shape: [1, function.size]),
                "position_ids": feature(places, shape: [1, function.size]),
            ]
            for (name, kind) in masks {
                features[name] = mask(places, window: kind[0], chunk: kind[1])
            }
            let provider = try MLDictionaryFeatureProvider(dictionary: features)
            let made = try function.model.prediction(from: provider, using: state)
            guard let found = made.featureValue(for: "logits")?.multiArrayValue else {
                throw ModelError.noOutput("logits")
            }
            let rows = MLShapedArray<Float>(found)  // [1, 1 or size, vocabulary]
            let width = rows.shape[2]
            if everyLogit {
                logits = Array(rows.scalars[(real - 1) * width..<real * width])
                at += real
            } else {
                logits = rows.scalars
                // after padding these are the padding's: the last token is read once more, by itself
                at += real < function.size ? real - 1 : real
            }
        }
        return logits
    }

    /// The largest function that the tokens fill; a padded one for three or more, if the caches have room for it.
    private func next(left: Int, room: Int) -> Function {
        let full = functions.last { $0.size <= left } ?? functions[0]
        let larger = functions.first { $0.size > full.size && $0.size <= room }
        if full.size == functions[0].size, left > 2, let larger {
            return larger
        }
        return full
    }

    /// 0 where the tokens at these places look, a very small number elsewhere: [1, 1, places, context].
    private func mask(_ places: [Int], window: Int, chunk: Int) -> MLFeatureValue {
        var values: [Float] = []
        values.reserveCapacity(places.count * context)
        for place in places {
            for column in 0..<context {
                let seen =
                    column <= place && (window == 0 || place < column + window)
                    && (chunk == 0 || place / chunk == column / chunk)
                values.append(seen ? 0 : -30000)
            }
        }
        return MLFeatureValue(shapedArray: MLShapedArray<Float>(scalars: values, shape: [1, 1, places.count, context]))
    }

    private static func largest(_ logits: [Float]) -> Int {
        var best = 0
        for index in logits.indices where logits[index] > logits[best] {
            best = index
        }
        return best
    }
}
