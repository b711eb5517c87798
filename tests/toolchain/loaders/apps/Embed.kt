import org.json.JSONArray
import org.json.JSONObject
import planish.OnnxModel

fun reply(model: OnnxModel, text: String, ask: JSONObject): Any = JSONArray(model.embed(text).map { it.toDouble() })
