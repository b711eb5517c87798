import org.json.JSONObject
import planish.OnnxModel

fun reply(model: OnnxModel, text: String, ask: JSONObject): Any =
    model.generate(text, ask.getInt("count"), ask.getBoolean("chat"))
